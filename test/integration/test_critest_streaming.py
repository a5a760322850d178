"""critest's streaming specs over WebSocket; over SPDY, its default, they run with all the others (test/conformance)."""
import sys

import pytest

from daemon import ROOT

pytestmark = pytest.mark.once("test/conformance runs critest on each backend")

sys.path.insert(0, str(ROOT / "test" / "conformance"))

WEBSOCKET = ["--websocket-exec", "--websocket-attach", "--websocket-portforward"]


def test_streaming_specs_over_websocket(own_daemon, registry, tmp_path):
    import critest
    import critest_images
    try:
        critest.binary()
    except RuntimeError as e:
        pytest.skip(str(e))
    d = own_daemon()
    critest_images.publish(registry, tmp_path / "layouts", d.certs)
    d.start()
    # a pod in the host's network is no VM's
    specs = critest.run(d.socket, tmp_path, focus=["Streaming"], skip=["host network"], flags=WEBSOCKET, timeout=600)
    print(critest.table(specs))
    assert len(specs) == 4 and all(s.state == "passed" for s in specs), critest.table(specs)
