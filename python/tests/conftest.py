"""Says which `warptrace` is tested."""

import warptrace


def pytest_report_header() -> str:
    return f"warptrace {warptrace.__version__} from {warptrace.__file__}"
