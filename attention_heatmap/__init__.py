"""The rooms behind `visualizeHeatMap`: a model is recorded, a record is drawn.

    sample -> inputs -> answer (plain generate) -> one teacher-forced pass: rows -> record -> maps, text -> frames

`recording/` alone knows torch and transformers, `drawing/` needs NumPy and Pillow only; `record` is the door between.

Dimension key (suffixes of local arrays):
    P prompt tokens   T response tokens   S = P + T positions   N planes of a record   H query heads
    G key/value heads   Q queries of one call   K keys (columns)   M image tokens   R regions of the pictures
    Y, X pixel rows and columns   C colour channels
"""
