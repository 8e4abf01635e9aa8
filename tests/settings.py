"""The settings that tests see: the project's own in an environment that is the same for everybody."""

import os
import tempfile

os.environ["SECURE_CHANNELS"] = "false"
os.environ["WALCAST_HOME"] = os.path.join(tempfile.gettempdir(), f"walcast-tests-{os.getuid()}")

from realtime_project.settings import *  # noqa: F403
