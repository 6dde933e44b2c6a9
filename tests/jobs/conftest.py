"""The browser, for the tests of the report and of `explore`."""

from tests.fixtures.browser import browser

__all__ = ["browser"]
