#!/usr/bin/env python3
"""The PyTorch twin of `median`: the same model, written a second time, to check the first against.

    python3 .ci/twin.py ./median

Needs PyTorch (1.13 or later) and nothing else. What the program computes by hand (forward, backward, Adam, the
random lists, the checkpoint format) is left to PyTorch here, in float64 and in float32, and both must agree with
the program. One line a check, with the largest difference found; the last line is `N passed, N failed`.
"""
import csv, json, math, os, struct, subprocess, sys, tempfile
import torch
import torch.nn.functional as F
from torch import nn

LIMIT, LR = 1e-5, 3e-3
DTYPES = {"F32": torch.float32, "BOOL": torch.bool}
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# ---- Checkpoints: safetensors is a length, a JSON header and the data ---------------------------------------

def save(state, path, metadata=None):
    header, data = {"__metadata__": metadata} if metadata else {}, b""
    for name, x in state.items():
        raw = bytes(x.contiguous().reshape(-1).view(torch.uint8).tolist())
        dtype = next(k for k, v in DTYPES.items() if v == x.dtype)
        header[name] = {"dtype": dtype, "shape": list(x.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + data)

def load(path):
    """As strict as the reference reader: metadata are strings, the data has no hole, no overlap, nothing left over."""
    with open(path, "rb") as f:
        header, data = json.loads(f.read(struct.unpack("<Q", f.read(8))[0])), f.read()
    assert all(isinstance(v, str) for v in header.pop("__metadata__", {}).values()), "metadata must be strings"
    state, at = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = entry["data_offsets"]
        assert begin == at, f"{path}: {name} begins at {begin}, not at {at}"
        x = torch.frombuffer(bytearray(data[begin:end]), dtype=DTYPES[entry["dtype"]])
        state[name], at = x.reshape(entry["shape"]), end
    assert at == len(data), f"{path}: {len(data)} bytes of data, {at} described"
    return state

# ---- The model, under TransformerLens's names and shapes ----------------------------------------------------

def group(**shapes):
    return nn.ParameterDict({name: nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()})

def norm(x, kind, ln):
    if kind == "none":
        return x
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    return x * ln.w + ln.b if kind == "LN" else x

class Median(nn.Module):
    def __init__(self, max_num=50, seq_len=7, d_model=32, d_head=32, n_layers=1, n_heads=1, d_mlp=0, normalization="LN"):
        super().__init__()
        self.max_num, self.seq_len, d, w, b = max_num, seq_len, d_model, (n_heads, d_model, d_head), (n_heads, d_head)
        self.normalization, layer_norm = normalization, lambda: group(w=d, b=d) if normalization == "LN" else None
        self.embed, self.pos_embed, self.blocks = group(W_E=(max_num, d)), group(W_pos=(seq_len, d)), nn.ModuleList()
        for _ in range(n_layers):
            block = nn.Module()
            block.ln1, block.ln2 = layer_norm(), layer_norm() if d_mlp else None
            block.attn = group(W_Q=w, W_K=w, W_V=w, W_O=(n_heads, d_head, d), b_Q=b, b_K=b, b_V=b, b_O=d)
            block.mlp = group(W_in=(d, d_mlp), b_in=d_mlp, W_out=(d_mlp, d), b_out=d) if d_mlp else None
            self.blocks.append(block)
        self.ln_final, self.unembed = layer_norm(), group(W_U=(d, max_num), b_U=max_num)

    def forward(self, lists, edit=lambda layer, z: z):
        """Logits at the last position, (batch, max_num). `edit` may change the heads' outputs z on their way."""
        x, kind = self.embed.W_E[lists] + self.pos_embed.W_pos, self.normalization
        future = torch.ones(self.seq_len, self.seq_len, dtype=torch.bool).triu(1)
        for layer, block in enumerate(self.blocks):
            a, m, h = block.attn, block.mlp, norm(x, kind, block.ln1)
            q = torch.einsum("bpm,hmd->bphd", h, a.W_Q) + a.b_Q
            k = torch.einsum("bpm,hmd->bphd", h, a.W_K) + a.b_K
            v = torch.einsum("bpm,hmd->bphd", h, a.W_V) + a.b_V
            scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
            pattern = scores.masked_fill(future, -math.inf).softmax(-1)
            z = edit(layer, torch.einsum("bhqk,bkhd->bqhd", pattern, v))
            x = x + torch.einsum("bqhd,hdm->bqm", z, a.W_O) + a.b_O
            if m is not None:
                x = x + torch.relu(norm(x, kind, block.ln2) @ m.W_in + m.b_in) @ m.W_out + m.b_out
        return norm(x[:, -1], kind, self.ln_final) @ self.unembed.W_U + self.unembed.b_U

def models_of(state, normalization="LN"):
    """The model that a checkpoint holds, in float32 and in float64; its configuration follows from the shapes and that."""
    (max_num, d_model), (n_heads, _, d_head) = state["embed.W_E"].shape, state["blocks.0.attn.W_Q"].shape
    config = [max_num, len(state["pos_embed.W_pos"]), d_model, d_head, sum(name.endswith("W_Q") for name in state), n_heads,
              len(state.get("blocks.0.mlp.b_in", [])), normalization]
    models = [Median(*config), Median(*config).double()]
    for model in models:
        missing, extra = model.requires_grad_(False).load_state_dict(state, strict=False)
        extra = [name for name in extra if not name.endswith(("attn.mask", "attn.IGNORE"))]
        assert not missing and not extra, f"missing {missing}, not known {extra}"
    return models

def dataset(size, max_num, seq_len, seed):
    torch.manual_seed(seed)
    lists = torch.randint(0, max_num, (size, seq_len))
    return lists, lists.median(1).values

def random_state(seed, **config):
    """Weights drawn as the program draws them; biases and LN's w near 0 and 1, not at them, so that each counts."""
    state, generator = Median(**config).state_dict(), torch.Generator().manual_seed(seed)
    for name, x in sorted(state.items()):
        noise, last = torch.randn(x.shape, generator=generator), name.split(".")[-1]
        x.copy_(noise * 0.8 / math.sqrt(len(state["unembed.W_U"])) if last[0] == "W" else noise * 0.1 + (last == "w"))
    return state

# ---- The program, and how a check is made --------------------------------------------------------------------

def median(*arguments, stdin=None):
    """Runs the program; the lines it prints."""
    command = [os.path.abspath(sys.argv[1]), *map(str, arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"median {' '.join(command[1:])}: exit {done.returncode}, {done.stderr.strip()}"
    return done.stdout.splitlines()

def text_of(lists):
    return "".join(" ".join(map(str, row)) + "\n" for row in lists.tolist())

def logits_of(path, lists):
    lines = median("predict", "--model", path, "--logits", stdin=text_of(lists))
    return torch.tensor([[float(x) for x in line.split()] for line in lines], dtype=torch.float64)

counts = {True: 0, False: 0}

def check(what, good, note=""):
    counts[bool(good)] += 1
    print("ok    " if good else "FAILED", f"{what}  {note}".rstrip(), flush=True)

def close(what, ours, theirs, limit=LIMIT):
    """Two dictionaries of tensors (or two tensors) are finite and differ by no more than `limit`."""
    ours, theirs = (x if isinstance(x, dict) else {"": x} for x in (ours, theirs))
    if {k: x.shape for k, x in ours.items()} != {k: x.shape for k, x in theirs.items()}:
        return check(what, False, "names or shapes differ")
    worst, where = max(((ours[k].double() - theirs[k].double()).abs().max().item(), k) for k in ours)
    finite = all(x.isfinite().all() for x in theirs.values())
    check(what, finite and worst <= limit, f"{worst:.1e} (limit {limit:.1e}) {where}")

def check_model(what, path, models, size=100):
    """The program's logits, accuracy and loss with the checkpoint at `path` are those of the models, in both precisions."""
    lists, _ = dataset(size, models[0].max_num, models[0].seq_len, 8)
    theirs = logits_of(path, lists)
    for model in models:
        # Well trained models have logits up to 300, where float32 has steps of 3e-5: allow a few of its last bits.
        ours = model(lists)
        close(f"{what}: logits, {ours.dtype}", ours, theirs, max(LIMIT, 1e-6 * ours.abs().max().item()))
    lists, medians = dataset(2000, models[0].max_num, models[0].seq_len, 7)
    logits = models[-1](lists)
    ours = [len(lists), (logits.argmax(1) == medians).double().mean(), F.cross_entropy(logits, medians)]
    row = next(csv.DictReader(median("eval", "--model", path, "--size", 2000, "--seed", 7, "--csv")))
    close(f"{what}: eval (accuracy {ours[1]:.4f}, loss {ours[2]:.4f})", torch.tensor(ours),
          torch.tensor([float(row[k]) for k in ("lists", "accuracy", "loss")]))

# ---- The checks ------------------------------------------------------------------------------------------------

def check_data():
    for size, max_num, seq_len, seed in (5, 100, 7, 23), (20000, 50, 7, 24), (3000, 1000, 11, 4294967295), (999, 13, 3, 0):
        lists, medians = dataset(size, max_num, seq_len, seed)
        ours = [f"{row} | {m}" for row, m in zip(text_of(lists).splitlines(), medians.tolist())]
        theirs = median("data", "--size", size, "--max-num", max_num, "--seq-len", seq_len, "--seed", seed)
        check(f"data: {size} lists of {seq_len} numbers below {max_num}, seed {seed}", ours == theirs)

def check_training(what, size, batch, epochs, seed, **config):
    state, steps = random_state(seed, **config), epochs * math.ceil(size / batch)
    normalization = config.get("normalization", "LN")
    models = models_of(state, normalization)
    save(state, "init.safetensors", {"normalization": normalization})
    check_model(f"{what}, untrained", "init.safetensors", models)
    median("train", "--init", "init.safetensors", "--trainset-size", size, "--valset-size", 10, "--epochs", epochs,
           "--batch-size", batch, "--lr", LR, "--schedule", "constant", "--preset", "original", "--no-shuffle",
           "--keep", "last", "--seed", seed, "--out", "out.safetensors")
    what, theirs = f"{what}, {steps} steps", load("out.safetensors")
    lists, medians = dataset(size, models[0].max_num, models[0].seq_len, seed)
    for model in models:
        adam = torch.optim.Adam(model.requires_grad_(True).parameters(), lr=LR, betas=(0.9, 0.999), eps=1e-8)
        for x, y in epochs * list(zip(lists.split(batch), medians.split(batch))):
            adam.zero_grad()
            F.cross_entropy(model(x), y).backward()
            adam.step()
        ours = model.requires_grad_(False).state_dict()
        # b_K shifts all scores of a query alike, which softmax ignores: its gradient is rounding noise, which Adam's
        # division scales up to steps of any size below lr. So b_K may stray that far; no other tensor may.
        for part, limit in ("b_K", 2 * steps * LR), ("all other tensors", LIMIT):
            mine, its = ({k: x for k, x in d.items() if k.endswith("b_K") == (part == "b_K")} for d in (ours, theirs))
            close(f"{what}: {part}, {ours['embed.W_E'].dtype}", mine, its, limit)
    check_model(what, "out.safetensors", models)

def check_foreign():
    """A file as Python writes it: metadata of its own, no configuration, TransformerLens's buffers (IGNORE is -inf)."""
    mask, ignore = torch.ones(7, 7, dtype=torch.bool).tril(), torch.tensor(-math.inf)
    buffers = {f"blocks.{l}.attn.{k}": x for l in (0, 1) for k, x in (("mask", mask), ("IGNORE", ignore))}
    save({**buffers, **random_state(5, n_layers=2, n_heads=2, d_head=16)}, "foreign.safetensors", {"format": "pt"})
    check_model("a foreign file", "foreign.safetensors", models_of(load("foreign.safetensors")))

def check_shipped():
    path = os.path.join(ROOT, "median.safetensors")
    missing, extra = Median().load_state_dict(load(path), strict=False)
    check("median.safetensors: load_state_dict", not missing, f"missing {missing}, not known {extra}")
    check_model("median.safetensors", path, models_of(load(path)), 1000)

def check_original():
    """The original's published model, and what is known of it."""
    path = os.path.join(os.path.dirname(ROOT), "shared", "median_model4.safetensors")
    if not os.path.exists(path):
        return print("skipped the original's model: ../shared/median_model4.safetensors is not there")
    models, (lists, medians) = models_of(load(path)), dataset(15, 50, 7, 42)
    check_model("original", path, models, 1000)
    answers = [26, 13, 22, 23, 29, 26, 27, 27, 28, 11, 33, 14, 32, 39, 17]
    losses = [4.9351e-05, 7.1332e-02, 3.1257e-03, 2.5391e-05, 3.2894e-02, 1.1026e-04, 3.3969e-03, 1.6034e-03, 1.7708e-03,
              3.8450e-04, 1.4642e-02, 1.5910e-01, 2.8547e-02, 1.9073e-06, 2.8474e-02, 0.0031474]
    predictions = median("predict", "--model", path, stdin=text_of(lists))
    check("original: predictions of 15 lists", [int(line) for line in predictions] == answers == medians.tolist())
    lists, medians = torch.cat([lists, torch.tensor([[41, 46, 16, 47, 30, 12, 27]])]), torch.tensor(answers + [30])
    for who, logits in ("the twin's", models[1](lists)), ("median's", logits_of(path, lists)):
        check(f"original: {who} predictions of 16 lists", torch.equal(logits.argmax(1), medians))
        ours = F.cross_entropy(logits, medians, reduction="none")
        close(f"original: {who} losses of 16 lists", torch.tensor(losses), ours, 2 * LIMIT)
    lists, medians = dataset(200, 50, 7, 42)
    for position in range(7):
        here, known = (torch.arange(7) == position).view(1, 7, 1, 1), 189 if position == 6 else 0
        ablated = models[1](lists, edit=lambda layer, z: torch.where(here, z.mean(0, keepdim=True), z))
        ours = (F.cross_entropy(ablated, medians, reduction="none") > 0.7).sum().item()
        rows = csv.DictReader(median("ablate", "--model", path, "--head", "0.0", "--positions", position, "--kind", "mean",
                                     "--size", 200, "--seed", 42, "--csv"))
        theirs = [int(row["alerts"]) for row in rows if row["positions"] == str(position)]
        check(f"original: position {position} mean-ablated, {known} of 200 lists above 0.7", [ours] == [known] == theirs,
              f"{ours} and {theirs}")

def main():
    if len(sys.argv) != 2:
        sys.exit("usage: twin.py MEDIAN_BINARY")
    sys.argv[1] = os.path.abspath(sys.argv[1])
    torch.set_num_threads(1)
    print("torch", torch.__version__)
    # Where a gradient is about 1e-8, Adam's eps, its rounding decides the step: for one seed in five or so of the default
    # model, PyTorch's float32 and float64 themselves differ by more than 1e-5. These seeds meet no such gradient.
    mlp = dict(max_num=13, seq_len=5, d_model=24, d_head=5, n_layers=2, n_heads=4, d_mlp=20)
    plain = dict(max_num=20, seq_len=3, d_model=16, d_head=8, n_heads=2)
    jobs = {"data": check_data, "foreign": check_foreign, "shipped": check_shipped, "original": check_original,
            "train default": lambda: check_training("default", 400, 64, 1, 26),
            "train MLP": lambda: check_training("2 layers, 4 heads, MLP", 300, 48, 1, 24, **mlp),
            "train no LN": lambda: check_training("no LN", 200, 64, 2, 25, normalization="none", **plain),
            "train LNPre": lambda: check_training("LNPre", 200, 64, 2, 25, normalization="LNPre", **plain)}
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, job in jobs.items():
            try:
                job()
            except Exception as error:  # one broken command must not hide what the others do
                check(name, False, f"{type(error).__name__}: {error}")
        os.chdir(ROOT)
    print(f"{counts[True]} passed, {counts[False]} failed")
    sys.exit(counts[False] > 0)

if __name__ == "__main__":
    main()
