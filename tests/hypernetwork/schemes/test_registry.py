"""Building schemes from configurations, and refused configurations."""

import pytest

from hart.errors import HartError
from hart.hypernetwork.schemes.base import SCHEMES, build_scheme
from hart.peft.base import RowBlock

BLOCKS = [RowBlock("block", "encoder", layers=2, rows=4, width=8)]


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_is_rebuilt_from_its_resolved_configuration(name: str):
    scheme = build_scheme({"name": name}, d_model=8, layers=2, blocks=BLOCKS)
    again = build_scheme(scheme.to_config(), d_model=8, layers=2, blocks=BLOCKS)
    assert type(again) is SCHEMES[name]
    assert again.to_config() == scheme.to_config()
    assert scheme.to_config().keys() == {"name", *scheme.options()}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "autoregresive"}, "unknown name 'autoregresive'; choose one of autoregressive"),
        ({}, "unknown name None"),
        ({"name": "autoregressive", "hist": "all"}, "unknown option 'hist'; it takes history"),
        ({"name": "shared", "history": "all"}, "unknown option 'history'; it takes rows"),
        ({"name": "bidirectional", "order": "up"}, "unknown option 'order'; it takes rows"),
        ({"name": "bidirectional", "rows": 0}, "scheme.bidirectional.rows must be a whole number"),
        ({"name": "autoregressive", "order": "up"}, "scheme.autoregressive.order must be one of bottom_up"),
        ({"name": "autoregressive", "order_seed": -1}, "scheme.autoregressive.order_seed must be a whole number"),
        ({"name": "shared", "rows": 0}, "scheme.shared.rows must be a whole number"),
        ({"name": "shared", "rows": 3}, "scheme.shared: states of 3 rows do not divide the 4 rows of block"),
        ({"name": "component", "heads": 5}, "scheme.component.heads must be a divisor of d_model 8"),
    ],
)
def test_mistakes_are_named(config, message: str):
    with pytest.raises(HartError, match=message):
        build_scheme(config, d_model=8, layers=2, blocks=BLOCKS)
