"""The machine code of a sparse product, written as LLVM's intermediate code with llvmlite.

``pack`` lays tokens side by side, so that one vector holds 16 of them; ``product`` keeps a block of
up to 64 tokens in registers while it walks the entries of a row that are not zero, and writes the
outputs as a dense layer does. A sparse row is read once per block, an input once per entry: one
load and one multiply-add for each 16 of the products that are needed, which is the least there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llvmlite import ir

# Tokens of a vector: a register of AVX-512, and two or four of them elsewhere.
LANES = 16
# Vectors of a block: with as many sums, half of the 16 registers of AVX2 hold one block.
MOST_VECTORS = 4
BLOCK = LANES * MOST_VECTORS

# What both functions are handed: 64-bit integers, of which those in _POINTERS are addresses.
JOB_FIELDS = (
    "next_item",  # how many items of work threads have taken so far
    "num_items",
    "num_tokens",
    "num_inputs",
    "num_outputs",
    "input_stride",  # entries from one token of the input to the next
    "input",
    "crow_indices",
    "col_indices",
    "values",
    "bias",
    "panels",  # per block of tokens: inputs by tokens of the block
    "output",
)
_POINTERS = frozenset(JOB_FIELDS[6:])

_I32, _I64, _FLOAT, _POINTER = ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.PointerType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
# Rows whose sums are few wait for one another's multiply-adds: they add up in more than one sum.
_SUMS_PER_VECTOR = {1: 4, 2: 2, 3: 1, 4: 1}

_Values = Sequence[ir.Value]


def source() -> str:
    """Both functions as text; each is ``void (job *)`` and returns once no item is left."""
    module = ir.Module("platon_prune")
    _define(module, "pack", _pack_item, "num_inputs")
    _define(module, "product", _product_item, "num_outputs")
    return str(module)


class _Builder(ir.IRBuilder):
    """llvmlite's builder, with the few expressions that both functions are made of."""

    job: dict[str, ir.Value]

    def number(self, value: int | ir.Value) -> ir.Value:
        return ir.Constant(_I64, value) if isinstance(value, int) else value

    def plus(self, a: ir.Value, b: int | ir.Value) -> ir.Value:
        return self.add(a, self.number(b))

    def times(self, a: ir.Value, b: int | ir.Value) -> ir.Value:
        return self.mul(a, self.number(b))

    def minus(self, a: ir.Value, b: int | ir.Value) -> ir.Value:
        return self.sub(a, self.number(b))

    def at_most(self, a: ir.Value, limit: int | ir.Value) -> ir.Value:
        return self.intrinsic("llvm.smin.i64", _I64, a, self.number(limit))

    def multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """``a * b + c`` of vectors, rounded once."""
        return self.intrinsic(f"llvm.fma.v{LANES}f32", _VECTOR, a, b, c)

    def intrinsic(self, name: str, result: ir.Type, *operands: ir.Value) -> ir.Value:
        function = self.module.globals.get(name)
        if function is None:
            signature = ir.FunctionType(result, [operand.type for operand in operands])
            function = ir.Function(self.module, signature, name)
        return self.call(function, operands)

    def groups(self, count: ir.Value) -> ir.Value:
        """How many groups of 16 hold so many."""
        return self.sdiv(self.plus(count, LANES - 1), self.number(LANES))

    def at(self, pointer: ir.Value, index: int | ir.Value, of: ir.Type = _FLOAT) -> ir.Value:
        return self.gep(pointer, [self.number(index)], source_etype=of)

    def read(self, pointer: ir.Value, index: ir.Value, of: ir.Type = _FLOAT) -> ir.Value:
        return self.load(self.at(pointer, index, of), typ=of)

    def splat(self, number: ir.Value) -> ir.Value:
        """A vector of 16 times the same number."""
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = self.insert_element(undefined, number, ir.Constant(_I32, 0))
        zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
        return self.shuffle_vector(first, undefined, zeros)

    def loop(
        self,
        start: int | ir.Value,
        stop: int | ir.Value,
        body: Callable[[ir.Value, _Values], _Values],
        carried: _Values = (),
    ) -> _Values:
        """``for i in range(start, stop): carried = body(i, carried)``; returns what is carried."""
        before = self.block
        head, inside, after = (self.append_basic_block() for _ in range(3))
        self.branch(head)
        self.position_at_end(head)
        index = self.phi(_I64)
        index.add_incoming(self.number(start), before)
        values = [self.phi(value.type) for value in carried]
        for phi, value in zip(values, carried, strict=True):
            phi.add_incoming(value, before)
        self.cbranch(self.icmp_signed("<", index, self.number(stop)), inside, after)
        self.position_at_end(inside)
        results = body(index, values)
        # Here, since the body may have ended in another block than it began in.
        index.add_incoming(self.plus(index, 1), self.block)
        for phi, result in zip(values, results, strict=True):
            phi.add_incoming(result, self.block)
        self.branch(head)
        self.position_at_end(after)
        return values

    def transposed(self, rows: _Values) -> _Values:
        """16 vectors of 16 as a matrix, the other way round.

        Interleaving the first half of the rows with the second, as a deck of cards is shuffled,
        moves each number to the place whose binary digits are rotated by one. After four times the
        digits of the row and those of the column have changed places.
        """
        for _ in range(4):
            halves = list(zip(rows[: LANES // 2], rows[LANES // 2 :], strict=True))
            rows = [
                self.shuffle_vector(first, second, _interleaving(start))
                for first, second in halves
                for start in (0, LANES // 2)
            ]
        return rows


def _interleaving(start: int) -> ir.Constant:
    """Of two vectors the eight numbers from ``start`` on, in turn."""
    half = range(start, start + LANES // 2)
    indices = [index for k in half for index in (k, k + LANES)]
    return ir.Constant(ir.VectorType(_I32, LANES), indices)


def _define(
    module: ir.Module,
    name: str,
    item: Callable[[_Builder, ir.Value, _Block], None],
    grouped: str,
) -> None:
    """A function that takes items of work until none is left.

    An item is one block of tokens and 16 of the inputs or outputs, as ``grouped`` says. Threads
    take the next one from a counter, so none waits for another that the system put aside, and
    with one thread the function is simply called.
    """
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_POINTER]), name)
    b = _Builder(function.append_basic_block())
    pointer = function.args[0]
    b.job = {
        field: b.load(b.at(pointer, place, _I64), typ=_POINTER if field in _POINTERS else _I64)
        for place, field in enumerate(JOB_FIELDS)
        if field != "next_item"
    }
    num_groups = b.groups(b.job[grouped])
    # Scratch on the stack, once: within the loop it would grow with every item.
    tiles = b.alloca(ir.ArrayType(_FLOAT, (MOST_VECTORS + 1) * LANES * LANES))
    tiles.align = 64
    # LLVM knows pointers without a type alone; llvmlite still gives this one the other kind.
    tiles.type = _POINTER
    head, inside, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    taken = b.atomic_rmw("add", pointer, b.number(1), "monotonic")
    b.cbranch(b.icmp_signed("<", taken, b.job["num_items"]), inside, after)
    b.position_at_end(inside)
    block = _Block(b, b.sdiv(taken, num_groups), tiles)
    first = b.times(b.srem(taken, num_groups), LANES)
    # The last group begins earlier where 16 don't divide the whole: it does again what its
    # neighbour did, with the same result.
    first = b.at_most(first, b.minus(b.job[grouped], LANES))
    item(b, first, block)
    b.branch(head)
    b.position_at_end(after)
    b.ret_void()


class _Block:
    """A block of tokens: where it begins, how many vectors it has, and its panel."""

    def __init__(self, b: _Builder, number: ir.Value, tiles: ir.Value) -> None:
        self.first_token = b.times(number, BLOCK)
        tokens = b.at_most(b.minus(b.job["num_tokens"], self.first_token), BLOCK)
        self.num_vectors = b.groups(tokens)
        self.panel = b.at(b.job["panels"], b.times(self.first_token, b.job["num_inputs"]))
        self.tiles = tiles


# --- tokens side by side ------------------------------------------------------------------------


def _pack_item(b: _Builder, first_input: ir.Value, block: _Block) -> None:
    last_token = b.minus(b.job["num_tokens"], 1)
    width = b.times(block.num_vectors, LANES)

    def vector(number: ir.Value, _: _Values) -> _Values:
        rows = []
        for lane in range(LANES):
            token = b.plus(b.plus(block.first_token, b.times(number, LANES)), lane)
            # Lanes without a token repeat the last one; what comes of them is not written.
            token = b.at_most(token, last_token)
            place = b.plus(b.times(token, b.job["input_stride"]), first_input)
            rows.append(b.load(b.at(b.job["input"], place), typ=_VECTOR, align=4))
        for lane, column in enumerate(b.transposed(rows)):
            place = b.times(b.plus(first_input, lane), width)
            place = b.plus(place, b.times(number, LANES))
            b.store(column, b.at(block.panel, place), align=64)
        return ()

    b.loop(0, block.num_vectors, vector)


# --- the product --------------------------------------------------------------------------------


def _product_item(b: _Builder, first_output: ir.Value, block: _Block) -> None:
    joined = b.append_basic_block()
    sizes = {n: b.append_basic_block() for n in range(1, MOST_VECTORS + 1)}
    choice = b.switch(block.num_vectors, sizes[MOST_VECTORS])
    for n in range(1, MOST_VECTORS):
        choice.add_case(b.number(n), sizes[n])
    for n, entry in sizes.items():
        # A loop for each size, since a register has no index.
        b.position_at_end(entry)
        _rows(b, first_output, block, n)
        b.branch(joined)
    b.position_at_end(joined)
    b.loop(0, block.num_vectors, lambda vector, _: _write(b, first_output, block, vector))


def _rows(b: _Builder, first_output: ir.Value, block: _Block, num_vectors: int) -> None:
    """The outputs of 16 rows, into a tile of rows by tokens for each vector."""
    num_sums = _SUMS_PER_VECTOR[num_vectors]

    def add_entry(entry: ir.Value, sums: _Values) -> list[ir.Value]:
        column = b.zext(b.read(b.job["col_indices"], entry, _I32), _I64)
        weight = b.splat(b.read(b.job["values"], entry))
        inputs = b.at(block.panel, b.times(column, LANES * num_vectors))
        vectors = [b.at(inputs, LANES * v) for v in range(num_vectors)]
        return [
            b.multiply_add(weight, b.load(vector, typ=_VECTOR, align=64), total)
            for vector, total in zip(vectors, sums, strict=True)
        ]

    def row(number: ir.Value, _: _Values) -> _Values:
        output = b.plus(first_output, number)
        start, stop = (
            b.sext(b.read(b.job["crow_indices"], place, _I32), _I64)
            for place in (output, b.plus(output, 1))
        )
        sums: _Values = [b.splat(b.read(b.job["bias"], output))] * num_vectors
        if num_sums > 1:
            rounds = b.sdiv(b.minus(stop, start), b.number(num_sums))
            begun = start

            def add_entries(number: ir.Value, sums: _Values) -> _Values:
                first = b.plus(begun, b.times(number, num_sums))
                results = []
                for k in range(num_sums):
                    part = sums[k * num_vectors : (k + 1) * num_vectors]
                    results += add_entry(b.plus(first, k), part)
                return results

            zeros = [ir.Constant(_VECTOR, [0.0] * LANES)] * (num_vectors * (num_sums - 1))
            parts = b.loop(0, rounds, add_entries, [*sums, *zeros])
            sums = parts[:num_vectors]
            for k in range(1, num_sums):
                part = parts[k * num_vectors : (k + 1) * num_vectors]
                sums = [b.fadd(one, other) for one, other in zip(sums, part, strict=True)]
            start = b.plus(start, b.times(rounds, num_sums))
        sums = b.loop(start, stop, add_entry, sums)
        for v, total in enumerate(sums):
            place = b.plus(b.times(number, LANES), v * LANES * LANES)
            b.store(total, b.at(block.tiles, place), align=64)
        return ()

    b.loop(0, LANES, row)


def _write(b: _Builder, first_output: ir.Value, block: _Block, vector: ir.Value) -> _Values:
    """A tile to where a dense layer has it: per token 16 outputs beside each other."""
    tile = b.at(block.tiles, b.times(vector, LANES * LANES))
    turned = b.at(block.tiles, MOST_VECTORS * LANES * LANES)
    rows = [b.load(b.at(tile, LANES * k), typ=_VECTOR, align=64) for k in range(LANES)]
    for lane, column in enumerate(b.transposed(rows)):
        b.store(column, b.at(turned, LANES * lane), align=64)
    first_token = b.plus(block.first_token, b.times(vector, LANES))
    count = b.at_most(b.minus(b.job["num_tokens"], first_token), LANES)

    def token(lane: ir.Value, _: _Values) -> _Values:
        outputs = b.load(b.at(turned, b.times(lane, LANES)), typ=_VECTOR, align=64)
        place = b.times(b.plus(first_token, lane), b.job["num_outputs"])
        place = b.plus(place, first_output)
        b.store(outputs, b.at(b.job["output"], place), align=4)
        return ()

    b.loop(0, count, token)
    return ()
