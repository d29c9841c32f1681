"""The bundled checkpoint `nano`: a tiny DiffusionGemma that solves Sudoku."""
