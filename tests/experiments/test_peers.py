import numpy as np
import pytest

from experiments.peers import require_same, require_same_step


def test_different_results_are_refused():
    same = np.array([3.0, -4.0])
    assert require_same("nasa", same, same) == 0
    with pytest.raises(RuntimeError, match=r"nasa: the two sides are 2\.5e-02 apart: they are not the same"):
        require_same("nasa", same + 0.1, same)
    with pytest.raises(RuntimeError, match=r"nasa: the two sides are nan apart"):
        require_same("nasa", same * np.nan, same)


def test_different_steps_are_refused():
    same = (np.ones(3), np.ones(3))
    tree = {"a": np.array([3.0, 4.0]), "b": np.zeros(2)}
    other = {"a": np.array([3.0, 4.0]), "b": np.array([0.0, 0.1])}
    apart = require_same_step("uw", same, (other, tree), 0.1)
    assert apart == {"losses_apart": 0.0, "direction_apart": pytest.approx(0.02)}
    with pytest.raises(
        RuntimeError, match=r"uw: the two sides' directions are 2.0e-02 apart, more than 1e-04"
    ):
        require_same_step("uw", same, (other, tree), 1e-4)
    with pytest.raises(RuntimeError, match="directions are nan apart"):
        require_same_step("uw", same, ({"a": np.full(2, np.nan)}, {"a": np.ones(2)}), 1e-4)
    with pytest.raises(RuntimeError, match=r"uw: the two sides' losses are 1\.0e-01 apart"):
        require_same_step("uw", (np.full(3, 1.1), np.ones(3)), (tree, tree), 1e-4)
    # A random direction is not compared.
    assert require_same_step("rlw", same, (other, tree), None) == {"losses_apart": 0.0}
