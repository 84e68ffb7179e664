"""`benchmarks/drop_in.py`: what it compares is the same model twice, and its verdicts follow from what is found."""

import pytest
from drop_in import bound, couplings, difference, hot_spots, lines, measured, started
from peers import zuko  # noqa: F401, imported without its warnings


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*couplings(32), *hot_spots()])
def test_the_fused_model_computes_what_the_original_does(name):
    subject = (couplings(32, rows=8) | hot_spots(rows=4))[name]
    models, x = started(subject)
    assert difference(subject, models, x) < 1e-4


@pytest.mark.filterwarnings("ignore")
def test_every_part_is_measured():
    found = measured("zuko LU", hot_spots(rows=4)["zuko LU"], 0.01, "cpu")
    assert set(found) == {"difference", "disturbed", "training", "inverse training", "inverse"}
    assert all(found[part][who]["seconds"] > 0 for part in ("training", "inverse") for who in ("eager", "fused"))
    assert found["training"]["fused"]["live MB"] > 0


def test_verdicts():
    assert [bound(name, "training") for name in ("nflows H=128", "normflows exp H=128", "FrEIA AllInOne H=32",
                                                 "FrEIA GLOW H=32", "FrEIA GLOW H=0", "zuko Glow")] == [
        1.2, 1.0, 1.5, 1.25, 3.0, 1.0]
    assert bound("zuko LU", "inverse training") == 10.0
    assert [bound("normflows MAF", part) for part in ("training", "inverse")] == [5.0, None]
    found = {"training": {"eager": {"seconds": 3.0, "live MB": 5.0}, "fused": {"seconds": 2.0, "live MB": 4.0}},
             "inverse": {"eager": {"seconds": 1.0}, "fused": {"seconds": 1.0}}, "difference": 1e-7, "disturbed": "late"}
    training, inverse, last = lines("zuko H=32", found)
    assert " ".join(training.split()) == (
        "zuko H=32 training 3000.00 -> 2000.00 ms 1.50x >= 1.5 reached live 5.0 -> 4.0 MB")
    assert " ".join(inverse.split()) == "zuko H=32 inverse 1000.00 -> 1000.00 ms 1.00x >= 1.5 missed"
    assert last.split()[-2:] == ["1.0e-07", "late"]
