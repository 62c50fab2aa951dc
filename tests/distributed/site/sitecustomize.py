"""Python imports this when it starts: a launched worker does first what the test has asked for."""

import os

if "RANK" in os.environ and (asked := os.environ.get("SUREFOOT_TEST_PATCH")):
    from importlib import import_module

    module, _, function = asked.partition(":")
    getattr(import_module(module), function)()
