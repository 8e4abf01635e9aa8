"""The first moment of a server's end."""

from __future__ import annotations

import signal

from tests.servers import free_port
from tests.system.corridor import LIMIT_S, DaphneProcess


def test_nobody_is_let_in_any_more_when_clients_begin_to_be_told_that_the_server_ends() -> None:
    port = free_port()
    with DaphneProcess({"PORT": str(port)}, "tests.system.ending_daphne:application", port=port) as daphne:
        daphne.send_signal(signal.SIGTERM)
        daphne.wait(LIMIT_S)
        assert daphne.log.count("refused") == 1
        assert "let in" not in daphne.log
