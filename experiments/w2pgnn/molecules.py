"""Molecules as graphs, and their scaffold domains.

A domain is one of five groups of Bemis-Murcko scaffolds (Bemis and Murcko 1996, doi:10.1021/jm9602928), as
the W2PGNN authors' ``construct_pre_data.py`` makes them of ZINC15. RDKit reads the molecules; nothing else
needs it.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from experiments.text_lines import numbered_lines
from experiments.w2pgnn.networks import Network, simple_edges

DOMAINS = 5


def read_smiles(path: Path, domain: int | None = None) -> Network:
    """Reads molecules.

    Args:
        path: a text file, ``.gz`` or not, with a SMILES at the beginning of each line and perhaps a class
            after a comma or a tab; the first line may be a heading.
        domain: only the molecules of this scaffold domain, 0 to 4.

    Returns:
        The molecules; atoms are nodes, bonds are edges.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: RDKit is missing.
        ValueError: a line without a molecule, or no such domain. The message names file, line and remedy.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: expected a SMILES at the beginning of each line")
    if domain is not None and not 0 <= domain < DOMAINS:
        raise ValueError(f"smiles:{path}#{domain}: expected a scaffold domain from 0 to {DOMAINS - 1}")
    chem, scaffold_of = _rdkit()
    molecules, classes, smiles = [], [], []
    for number, (where, line) in enumerate(numbered_lines(path)):
        cells = next(csv.reader([line.replace("\t", ",")]))
        text = cells[0].strip()
        if number == 0 and text.lower() in ("smiles", "smile", "mol", "canonical_smiles"):
            continue
        molecule = chem.MolFromSmiles(text) if text else None
        if molecule is None:
            raise ValueError(
                f"{where}: expected a SMILES that RDKit can read, got {text[:60]!r}: remove the line"
            )
        molecules.append(molecule)
        smiles.append(text)
        classes.append(cells[1].strip() if len(cells) > 1 else "")
    if not molecules:
        raise ValueError(f"{path}: no molecule: expected a SMILES at the beginning of each line")
    chosen = list(range(len(molecules)))
    if domain is not None:
        chosen = scaffold_domain([scaffold_of(text) for text in smiles], domain)
    pairs, graph, first = [], [], 0
    for number, index in enumerate(chosen):
        molecule = molecules[index]
        pairs += [(first + b.GetBeginAtomIdx(), first + b.GetEndAtomIdx()) for b in molecule.GetBonds()]
        graph += [number] * molecule.GetNumAtoms()
        first += molecule.GetNumAtoms()
    edges, notes = simple_edges(np.array(pairs, np.int64), path.name)
    name = path.name if domain is None else f"{path.name}#{domain}"
    labels = [classes[index] for index in chosen]
    numbers = np.unique(labels, return_inverse=True)[1] if all(labels) else None
    return Network(name, first, edges, numbers, np.array(graph), notes)


def scaffold_domain(scaffolds: list[str], domain: int) -> list[int]:
    """The molecules of one of five groups of scaffolds.

    Scaffolds, in the order of their first molecule, are permuted with seed 0 and cut in five runs of equal
    length; of each run the first half is kept, of the last one all that is left where the length does not
    divide.

    Args:
        scaffolds: of each molecule.
        domain: 0 to 4.

    Returns:
        Numbers of the molecules.

    Raises:
        ValueError: fewer than ten scaffolds, so that a domain would be empty.

    Example:
        >>> scaffold_domain([chr(97 + i % 20) for i in range(40)], 0)
        [18, 38, 1, 21]
    """
    groups: dict[str, list[int]] = {}
    for number, scaffold in enumerate(scaffolds):
        groups.setdefault(scaffold, []).append(number)
    length = len(groups) // DOMAINS
    if length < 2:
        raise ValueError(
            f"scaffolds: expected at least {2 * DOMAINS} different ones for {DOMAINS} domains, got "
            f"{len(groups)}"
        )
    members = list(groups.values())
    order = np.random.RandomState(0).permutation(len(members))
    # The official test is on the run's end, so that the last run is halved, too, unless it ends the list.
    end = length * domain + length // 2 if length * (domain + 1) < len(members) else len(members)
    return [number for at in order[length * domain : end] for number in members[at]]


def _rdkit() -> tuple[Any, Any]:
    try:
        from rdkit import Chem  # pyright: ignore[reportMissingImports]
        from rdkit.Chem.Scaffolds import MurckoScaffold  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "reading SMILES needs RDKit: pip install rdkit, or convert the molecules to the TU text format "
            "and read them with tu:FOLDER"
        ) from error
    return Chem, lambda text: MurckoScaffold.MurckoScaffoldSmiles(smiles=text, includeChirality=True)
