"""Retrieval collections: documents, queries and judgments from a folder of ours, of BEIR or of MS MARCO.

`load_collection` recognises the three layouts; `read_beir`, `read_ms_marco` and `read_folder` read one of
them without a [queries, documents] matrix, and `ms_marco_triples` reads training triples one at a time.
"""

from experiments.collections.beir import read_beir
from experiments.collections.collection import (
    TINY,
    Collection,
    data_folder,
    find_collections,
    load_collection,
    read_folder,
)
from experiments.collections.judged_texts import JudgedTexts, Judgments
from experiments.collections.ms_marco import (
    Triple,
    ms_marco_triples,
    read_ms_marco,
    triple_numbers,
)

__all__ = [
    "TINY",
    "Collection",
    "JudgedTexts",
    "Judgments",
    "Triple",
    "data_folder",
    "find_collections",
    "load_collection",
    "ms_marco_triples",
    "read_beir",
    "read_folder",
    "read_ms_marco",
    "triple_numbers",
]
