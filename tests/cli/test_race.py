import signal
import subprocess
import sys

from click.testing import CliRunner

from schuss.cli.race import command


def run(*arguments):
    return CliRunner().invoke(command, list(arguments))


def test_digits_prints_a_table_of_all_entries():
    result = run("digits", "--entries", "sgd,nesterov")
    assert result.exit_code == 0, result.output
    assert "sgd" in result.output
    assert "3 of 3" in result.output


def test_an_unknown_task_is_a_clear_error():
    result = run("nope")
    assert result.exit_code == 1
    assert "Error: task='nope' is not one of" in result.output
    assert "digits" in result.output


def test_an_unknown_entry_is_a_clear_error():
    result = run("digits", "--entries", "sgd,wonder")
    assert result.exit_code == 1
    assert "entry='wonder' is not one of sgd, momentum" in result.output


def test_missing_data_is_a_clear_error(tmp_path):
    result = run("mnist", "--data", str(tmp_path))
    assert result.exit_code == 1
    assert "train-images-idx3-ubyte is missing" in result.output


def test_help_shows_examples():
    assert "schuss race mnist --data" in run("--help").output


def test_interrupting_prints_what_is_done():
    program = "from schuss.cli.race import command; command(['digits', '--preset', 'careful'])"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("momentum, seed 0"):
            process.send_signal(signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Stopped after" in rest
    assert "momentum" in rest
