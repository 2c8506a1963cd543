"use strict";
schuss.figure(document.querySelector("[data-figure='ladder']"), () => schuss.ladder(schuss.data, schuss.data.suggestion));
