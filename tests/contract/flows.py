"""The flows that the contract is tried with, and the same in a namespace of one's own."""

from __future__ import annotations

from typing import Literal

Series = Literal["1.3", "2.0"]

CONTRACT = "contract.flows"
EXTRA = "extra.flows"

FLOWS = {
    "works": """
id: works
namespace: contract.flows
inputs:
  - {id: text, type: STRING, required: false}
  - {id: number, type: INT, required: false}
  - {id: data, type: JSON, required: false}
tasks:
  - {id: say, type: io.kestra.plugin.core.log.Log, message: hello}
outputs:
  - {id: answer, type: STRING, value: "{{ inputs.text }}"}
""",
    "silent": """
id: silent
namespace: contract.flows
tasks:
  - {id: say, type: io.kestra.plugin.core.log.Log, message: hello}
""",
    "demanding": """
id: demanding
namespace: contract.flows
inputs:
  - {id: text, type: STRING}
tasks:
  - {id: say, type: io.kestra.plugin.core.log.Log, message: hello}
""",
    "fails": """
id: fails
namespace: contract.flows
tasks:
  - {id: boom, type: io.kestra.plugin.core.execution.Fail, errorMessage: the disk is full}
""",
    "sleeps": """
id: sleeps
namespace: contract.flows
tasks:
  - {id: nap, type: io.kestra.plugin.core.flow.Sleep, duration: PT600S}
""",
    "disabled": """
id: disabled
namespace: contract.flows
disabled: true
tasks:
  - {id: say, type: io.kestra.plugin.core.log.Log, message: hello}
""",
}

_SLEEPER = """
id: sleeper
namespace: extra.flows
inputs:
  - {id: f, type: FILE, required: false}
"""
_NAP = """tasks:
  - {id: nap, type: io.kestra.plugin.core.flow.Sleep, duration: PT600S}
"""
_MORE_INPUTS = """  - {id: n, type: INT, required: false}
  - {id: sel, type: SELECT, values: [a, b], required: false}
  - {id: d, type: DATETIME, required: false}
  - {id: b, type: BOOLEAN, required: false}
  - {id: arr, type: ARRAY, itemType: INT, required: false}
"""

EXTRA_FLOWS = {
    "hook": """
id: hook
namespace: extra.flows
triggers:
  - {id: w, type: io.kestra.plugin.core.trigger.Webhook, key: abcdefgh12345678}
tasks:
  - {id: say, type: io.kestra.plugin.core.log.Log, message: hi}
""",
    "limited": """
id: limited
namespace: extra.flows
concurrency: {limit: 1, behavior: FAIL}
tasks:
  - {id: nap, type: io.kestra.plugin.core.flow.Sleep, duration: PT600S}
""",
    "pauses": """
id: pauses
namespace: extra.flows
tasks:
  - {id: stop, type: io.kestra.plugin.core.flow.Pause}
""",
    "broken": """
id: broken
namespace: extra.flows
tasks:
  - {id: bad, type: io.kestra.plugin.core.execution.Fail, errorMessage: no luck}
""",
}


def source(flow: str, series: Series) -> str:
    """A flow's source as that series takes it: 2.0 has no BOOLEAN any more, and was recorded with
    fewer inputs."""
    if flow == "sleeper":
        return _SLEEPER + (_MORE_INPUTS if series == "1.3" else "") + _NAP
    return FLOWS.get(flow) or EXTRA_FLOWS[flow]
