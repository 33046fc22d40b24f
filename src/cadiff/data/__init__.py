"""Room 1: disk -> `BrainDataset`.

dataset.py      the dataset folder: BrainDataset.open, write_dataset
writer.py       writing one piece by piece: dataset_writer
readers/        the table of readers behind `cadiff data import`; one format a file
files.py        opening files that other people made: checked, memory-mapped, nothing executed
simulate.py     simulated subjects with a known code and known noise ceilings
preprocess.py   ROI choice, normalisation fitted on training trials, length policy
splits.py       stimulus-disjoint splits, averaging of repeats
trained_on.py   what a model was trained on, so that it never decodes its own training stimuli
reliability.py  split-half reliability and noise ceilings
describe.py     what `cadiff data describe` prints
"""
