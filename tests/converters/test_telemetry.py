"""Nothing leaves the integrator's machine: what OpenVINO and NNCF would report goes nowhere."""

import subprocess
import sys

import pytest

pytest.importorskip("openvino", reason="needs the extra edge")
pytest.importorskip("openvino_telemetry", reason="OpenVINO came without its telemetry")
pytest.importorskip("onnx", reason="needs the extra convert")

pytestmark = pytest.mark.convert

CONVERT = """
import multiprocessing, sys, threading, urllib.request
from onnx import helper
from converters.telemetry import forbid
if sys.argv[1] == "forbid":
    forbid()
asked = []
multiprocessing.Process.start = lambda self: asked.append(self)  # it forks to report
import openvino as ov
x, y = (helper.make_tensor_value_info(n, 1, [1, 3]) for n in "xy")
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
import onnx, tempfile, os
path = os.path.join(tempfile.mkdtemp(), "m.onnx")
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
ov.convert_model(path)
from openvino_telemetry import Telemetry
Telemetry().sender.executor.shutdown(wait=True)
print(len(asked))
"""


def reports(word: str, home: str) -> int:
    environment = {"HOME": home, "PATH": "/usr/bin:/bin"}  # no CI variable, no consent given or refused
    run = subprocess.run(
        [sys.executable, "-c", CONVERT, word], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    return int(run.stdout.split()[-1])


def test_converting_reports_nothing_once_forbidden(tmp_path_factory: pytest.TempPathFactory) -> None:
    assert reports("forbid", str(tmp_path_factory.mktemp("home"))) == 0


def test_without_it_openvino_would_report(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Otherwise the test above claims nothing."""
    assert reports("leave it", str(tmp_path_factory.mktemp("home"))) > 0
