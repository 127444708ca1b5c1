from hybrid_lightning.cli.same_on_ranks import SameOnRanks
from tests.processes import ranks
from tests.small import changed, write

BASE = {"trainer.devices": 2, "trainer.strategy": "ddp", "data.init_args.batch_size": 8}


def test_ranks_that_accumulate_differently_are_told_by_name_on_each(folder):
    write(changed(BASE))
    code = (
        "import os, sys; from hybrid_lightning.cli import main; "
        "sys.exit(main(['fit', '--config', 'small.yaml', '--trainer.accumulate_grad_batches', "
        "str(2 + int(os.environ['RANK']))]))"
    )
    done = ranks(2, "-c", code, cwd=folder, seconds=300)
    for one in done:
        assert one.returncode == 2, one.stderr
        assert "error: the ranks were started differently" in one.stderr
        assert "trainer.accumulate_grad_batches: 2 on rank 0, 3 on rank 1" in one.stderr


def test_a_fold_is_no_path_and_is_compared():
    facts = SameOnRanks({"data.init_args.fold": "2/5", "data.init_args.path": "a/b.csv"})._facts
    assert facts["data.init_args.fold"] == "'2/5'"
    assert "data.init_args.path" not in facts
