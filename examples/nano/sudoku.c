// Sudoku grids with one solution, for sudoku.py. Cells hold 0 (blank) or 1..size, row by row.
#include <stdint.h>
#include <string.h>

typedef struct {
    int size, box_rows, box_cols, limit, found;
    int row[9], col[9], box[9];  // digits used, as bits
    int grid[81];
} Board;

static uint64_t state = 0x9E3779B97F4A7C15u;

static int draw(int n) {  // xorshift64*
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (int)((state * 0x2545F4914F6CDD1Du >> 33) % (uint64_t)n);
}

static void shuffle(int *order, int n) {
    for (int i = 0; i < n; i++) order[i] = i;
    for (int i = n - 1; i > 0; i--) {
        int j = draw(i + 1), keep = order[i];
        order[i] = order[j];
        order[j] = keep;
    }
}

static int box_of(const Board *b, int row, int col) {
    return row / b->box_rows * (b->size / b->box_cols) + col / b->box_cols;
}

// Leaves the last solution in `grid` once the limit is reached.
static void search(Board *b) {
    int best = -1, best_count = 99, best_free = 0;
    for (int cell = 0; cell < b->size * b->size && best_count > 1; cell++) {
        if (b->grid[cell]) continue;
        int row = cell / b->size, col = cell % b->size;
        int used = b->row[row] | b->col[col] | b->box[box_of(b, row, col)];
        int rest = ~used & ((1 << b->size) - 1), count = __builtin_popcount(rest);
        if (count < best_count) best = cell, best_count = count, best_free = rest;
    }
    if (best < 0) {
        b->found++;
        return;
    }
    int row = best / b->size, col = best % b->size, box = box_of(b, row, col);
    int order[9];
    shuffle(order, b->size);
    for (int i = 0; i < b->size; i++) {
        int bit = 1 << order[i];
        if (!(best_free & bit)) continue;
        b->grid[best] = order[i] + 1;
        b->row[row] |= bit, b->col[col] |= bit, b->box[box] |= bit;
        search(b);
        if (b->found >= b->limit) return;
        b->grid[best] = 0;
        b->row[row] &= ~bit, b->col[col] &= ~bit, b->box[box] &= ~bit;
    }
}

static int solve(Board *b, const int *grid, int limit) {
    int cells = b->size * b->size;
    b->limit = limit, b->found = 0;
    memset(b->row, 0, sizeof b->row);
    memset(b->col, 0, sizeof b->col);
    memset(b->box, 0, sizeof b->box);
    memcpy(b->grid, grid, cells * sizeof *grid);
    for (int cell = 0; cell < cells; cell++) {
        if (!grid[cell]) continue;
        int row = cell / b->size, col = cell % b->size, box = box_of(b, row, col);
        int bit = 1 << (grid[cell] - 1);
        if ((b->row[row] | b->col[col] | b->box[box]) & bit) return 0;
        b->row[row] |= bit, b->col[col] |= bit, b->box[box] |= bit;
    }
    search(b);
    return b->found;
}

void sudoku_seed(uint64_t value) {
    state = (value + 1) * 0x9E3779B97F4A7C15u;
    for (int i = 0; i < 8; i++) draw(2);
}

// How many solutions `grid` has, counted up to `limit`.
int sudoku_count(int size, int box_rows, int box_cols, const int *grid, int limit) {
    Board b = {size, box_rows, box_cols};
    return solve(&b, grid, limit);
}

// A puzzle with exactly `givens` cells and one solution.
void sudoku_make(int size, int box_rows, int box_cols, int givens, int *puzzle, int *solution) {
    Board b = {size, box_rows, box_cols};
    int cells = size * size, order[81];
    for (;;) {
        memset(puzzle, 0, cells * sizeof *puzzle);
        shuffle(order, size);
        for (int i = 0; i < size; i++) puzzle[i] = order[i] + 1;
        solve(&b, puzzle, 1);
        memcpy(solution, b.grid, cells * sizeof *solution);
        memcpy(puzzle, solution, cells * sizeof *puzzle);
        shuffle(order, cells);
        int left = cells;
        for (int i = 0; i < cells && left > givens; i++) {
            puzzle[order[i]] = 0;
            if (solve(&b, puzzle, 2) == 1) left--;
            else puzzle[order[i]] = solution[order[i]];
        }
        if (left == givens) return;
    }
}
