"use strict";
schuss.figure(document.querySelector("[data-figure='range']"), () => schuss.rangeTest(schuss.data, schuss.data.suggestion));
