"""Options of each command: name, type, default, meaning. Written by ``python -m tests.cli.test_help``, never by hand."""

# ruff: noqa: E501, RUF100  an option is a line
# fmt: off

OPTIONS: dict[str, tuple[tuple[str, str, str, str], ...]] = {
    "init": (
        ('TABLE', '', '', 'A table (.csv, .tsv, .parquet, .json, .xlsx), or a folder with one per class.'),
        ('--target', 'COLUMN ...', '', 'What is to be predicted.'),
        ('--kind', 'TEXT', '', 'Of the target: binary, multiclass, multilabel or regression.'),
        ('--part', 'INPUT=MODULE', '', 'What reads an input, or a kind of input, such as image=timm:resnet18; may be repeated.'),
        ('--output', 'FILE', '', 'The file to write; left out: standard output.'),
    ),
    "check": (
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "plan": (
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "probe": (
        ('--ckpt_path', 'TEXT', 'null', 'Checkpoint whose weights are probed: best, last (of the newest run of this name) or a path; null probes the weights with which training would start.'),
        ('--output', 'TEXT', 'null', 'The table as a file; null: probe.csv in the folder of the runs.'),
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "shards": (
        ('--output', 'TEXT', '', 'The folder to write.'),
        ('--samples', 'INTEGER', '1000', 'Samples of a shard: so many that it has 100 MB to 1 GB.'),
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "lr_find": (
        ('--low', 'NUMBER', '1e-06', 'The first base rate, above 0.'),
        ('--high', 'NUMBER', '1.0', 'The last base rate.'),
        ('--steps', 'INTEGER', '100', 'Optimizer steps from low to high, each at a rate of its own; 20 or more.'),
        ('--plot', 'TEXT', 'null', 'Image to draw, such as lr.png (needs matplotlib); null draws with letters alone.'),
        ('--write', 'TEXT', 'null', 'YAML file for the rate that is suggested, which goes behind the config: fit mine.yaml lr.yaml.'),
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "fit": (
        ('--ckpt_path', 'TEXT', 'null', 'Checkpoint that a new run continues from: best, last (of the newest run of this name) or a path.'),
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
        ('--test_after_fit', 'best|last', 'null', 'Checkpoint tested at the end of fit: best or last; null tests nothing.'),
        ('--resume', 'TEXT', 'null', 'Run that fit continues in its folder: auto (the newest of this name) or a path; null: a new one.'),
        ('--batch_size_total', 'INTEGER', 'null', 'Samples of an optimizer step, over all devices and accumulated batches; null: as data and trainer say.'),
        ('--save_every', 'TEXT', 'null', "How often last.ckpt is saved between the ends of epochs, such as '500 steps'; null: only there."),
        ('--report', 'true|false', 'true', "Whether fit and test write report.html into the run's folder where plotly is installed (extra 'report')."),
        ('--on_group_change', 'error|weights_only|match', 'error', 'If groups or optimizer differ from those of --ckpt_path: error; weights_only: a new fit with the weights that match; match: goes on, also with the optimizer state that matches.'),
    ),
    "cross_validate": (
        ('--folds', 'INTEGER', '', 'Number of folds; each sample is tested once (default 5).'),
        ('--resume', '', '', 'Keep the folds that are finished, and go on.'),
    ),
    "compare": (
        ('--recipes', 'RECIPE ...', '', 'Names or YAML files that are stacked on the config; as_is adds nothing. Differences are to the first. Names: discriminative, freeze_embed, full, gradual, head_first, l2sp, layer_decay, linear_probe, lora, random_features, shifted_inputs, shifted_labels, surgical.'),
        ('--seeds', 'INTEGER', '', 'Number of seeds, from 0 on (default 5).'),
        ('--baselines', 'true|false', '', 'Also each part alone, pretrained parts from random weights, and ridge on all features (default true).'),
        ('--jobs', 'INTEGER', '', 'Fits at a time, which share the threads (default 1).'),
        ('--folder', 'TEXT', '', 'Where all is kept (default runs/<name>_compare).'),
        ('--search', 'KEY=LOW..HIGH ...', '', "First finds, for each row but the ridge, the values that are best on validation (extra 'tune')."),
        ('--trials', 'INTEGER', '', 'Values that a search tries per row (default 20).'),
    ),
    "validate": (
        ('--ckpt_path', 'TEXT', 'null', 'best, last (of the newest run of this name) or a path.'),
        ('--select', 'best|joint', 'best', 'best is what the run has selected for its best checkpoint; joint is the joint network in any case.'),
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "test": (
        ('--ckpt_path', 'LIST|TEXT', 'null', "best, last (of the newest run of this name) or a path. Several paths, folders of runs or a pattern in quotes, such as 'runs/x_seed*', are an ensemble: the metrics of each, and of their averaged prediction."),
        ('--select', 'best|joint', 'best', 'best is what the run has selected for its best checkpoint; joint is the joint network in any case.'),
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "predict": (
        ('--ckpt_path', 'LIST|TEXT', 'null', "best, last (of the newest run of this name) or a path. Several paths, folders of runs or a pattern in quotes, such as 'runs/x_fold*', are an ensemble: the table has the mean of what they predict, and std."),
        ('--output', 'TEXT', 'null', "The table to write, .csv or .parquet (extra 'data'); null: predictions.csv in the run's folder."),
        ('--row_numbers', 'true|false', 'false', "Whether the table also has the samples' row numbers if the data name them by ids."),
        ('--quote_formulas', 'true|false', 'false', "Whether ids, classes and names of columns that a spreadsheet would take for a formula, because they begin with =, +, - or @, get a ' before them."),
        ('--select', 'best|joint', 'best', 'best is what the run has selected for its best checkpoint; joint is the joint network in any case.'),
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "evaluate": (
        ('NEW.csv', '', '', 'The new rows: a table like that of the run, target included.'),
        ('--ckpt_path', 'TEXT', '', 'Checkpoint, or folder of a run, of which it is the best.'),
        ('--root', 'TEXT', '', 'Folder of the files that the table names (default: that of the table).'),
        ('--groups', 'TEXT', '', 'Column whose rows are drawn as a whole (default: split_by of the run).'),
        ('--draws', 'INTEGER', '', 'Bootstrap draws of an interval (default 1000).'),
        ('--batch_size', 'INTEGER', '', 'Samples per batch (default 32).'),
        ('--output', 'TEXT', '', 'The metrics as a table, .csv or .parquet (default: none).'),
        ('--config', 'TEXT', '', 'Config of the run, for the inputs of a checkpoint that does not hold them.'),
        ('--report', '', '', 'Also show the metrics and predictions in the report of the run.'),
    ),
    "export": (
        ('--output', 'TEXT', '', 'The file to write: .pt2 for torch_export, .safetensors for safetensors.'),
        ('--format', 'torch_export|safetensors', 'torch_export', 'A program of torch.export for a batch of any number of samples, or the tensors alone.'),
        ('--ckpt_path', 'TEXT', 'null', 'best, last (of the newest run of this name) or a path.'),
        ('--select', 'best|joint', 'best', 'best is what the run has selected for its best checkpoint; joint is the joint network in any case.'),
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "export_part": (
        ('--ckpt_path', 'TEXT', '', 'Checkpoint of a run.'),
        ('--part', 'TEXT', '', 'Name of the part, such as stem or head.'),
        ('--output', 'TEXT', '', 'The .safetensors file to write.'),
    ),
    "embed": (
        ('--output', 'TEXT', '', "The file to write: .npz, an array (rows, features) per part; or .parquet (extra 'data'), a column of lists per part."),
        ('--ckpt_path', 'TEXT', 'null', 'Checkpoint whose weights are used: best, last (of the newest run of this name) or a path; null takes the weights with which training would start.'),
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "prefetch": (
        ('--name', 'TEXT', 'run', "Folder under runs/; the config's file name if left out."),
        ('--seed_everything', 'true|false|INTEGER', '0', 'Seed of all that is drawn; true draws one, false sets none.'),
    ),
    "report": (
        ('RUN ...', '', '', 'Folders of runs, such as runs/quickstart.'),
        ('--output', 'TEXT', '', "The page, .html (default: report.html in the run's folder; of several, here)."),
        ('--config', 'TEXT', '', 'Config whose model and data predict the validation rows.'),
        ('--ckpt_path', 'TEXT', '', 'Checkpoint that predicts: best (default) or last of the run, or a path.'),
    ),
}
