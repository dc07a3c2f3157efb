"""llama.cpp with Q8_0 weights: each text a sequence of its own in one batch, without padding."""

import ctypes
import json

import gguf
import llama_cpp
import numpy as np
from safetensors.numpy import load_file

from benchmarks.baselines.job import Job, Rows, answer

BATCH_TOKENS = 2048
BATCH_TEXTS = 32

_TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


class PackedModel:
    """A llama.cpp context in which every sequence has a cache of its own."""

    def __init__(self, job: Job) -> None:
        llama_cpp.llama_backend_init()
        path = str(job.served / "model.gguf").encode()
        self._model = llama_cpp.llama_model_load_from_file(
            path, llama_cpp.llama_model_default_params()
        )
        assert self._model is not None, "llama.cpp did not load the model"
        longest = max(len(row) for rows in (*job.shapes.values(), job.parity) for row in rows)
        room = max(BATCH_TOKENS, sum(map(len, job.parity)))
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = BATCH_TEXTS * longest
        params.n_batch = params.n_ubatch = room
        params.n_seq_max = BATCH_TEXTS
        params.n_threads = params.n_threads_batch = job.threads
        params.embeddings = True
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_LAST
        params.kv_unified = False
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        assert self._context is not None, "llama.cpp made no context"
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._dim = llama_cpp.llama_model_n_embd(self._model)
        self._batch = llama_cpp.llama_batch_init(room, 0, 1)

    def embed(self, rows: Rows) -> np.ndarray:
        """Embed rows sorted by length, as many at once as a batch takes."""
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        batches: list[list[int]] = [[]]
        tokens = 0
        for index in order:
            if tokens + len(rows[index]) > BATCH_TOKENS or len(batches[-1]) == BATCH_TEXTS:
                batches.append([])
                tokens = 0
            batches[-1].append(index)
            tokens += len(rows[index])
        vectors = [self.embed_batch([rows[index] for index in batch]) for batch in batches]
        return np.concatenate(vectors)[np.argsort(order)]

    def embed_batch(self, rows: Rows) -> np.ndarray:
        """Embed rows as the sequences of one batch."""
        llama_cpp.llama_memory_clear(self._memory, False)
        batch, count = self._batch, 0
        for sequence, row in enumerate(rows):
            for position, token in enumerate(row):
                batch.token[count] = token
                batch.pos[count] = position
                batch.n_seq_id[count] = 1
                batch.seq_id[count][0] = sequence
                batch.logits[count] = True
                count += 1
        batch.n_tokens = count
        code = llama_cpp.llama_decode(self._context, batch)
        assert code == 0, f"llama_decode returned {code}"
        embeddings = [
            np.ctypeslib.as_array(
                llama_cpp.llama_get_embeddings_seq(self._context, sequence), (self._dim,)
            )
            for sequence in range(len(rows))
        ]
        vectors = np.stack(embeddings)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def convert(job: Job) -> None:
    """Write the model as GGUF in fp32, then let llama.cpp quantise it to Q8_0."""
    config = json.loads((job.base / "config.json").read_text(encoding="utf-8"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    job.served.mkdir(parents=True)
    plain, quantised = job.served / "plain.gguf", job.served / "model.gguf"
    writer = gguf.GGUFWriter(plain, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")  # it is given ids
    for name, weight in load_file(job.base / "model.safetensors").items():
        if ".q_proj" in name or ".k_proj" in name:
            weight = _interleave(weight, heads if ".q_proj" in name else kv_heads)
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.nthread = job.threads
    code = llama_cpp.llama_model_quantize(
        str(plain).encode(), str(quantised).encode(), ctypes.byref(params)
    )
    assert code == 0, f"llama_model_quantize returned {code}"
    plain.unlink()


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Order each head's rows as llama.cpp rotates them: pairs side by side, not in two halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _gguf_name(name: str) -> str:
    if name == "embed_tokens.weight":
        return "token_embd.weight"
    if name == "norm.weight":
        return "output_norm.weight"
    _, layer, module = name.removesuffix(".weight").split(".", 2)
    return f"blk.{layer}.{_TENSORS[module]}.weight"


if __name__ == "__main__":
    answer(PackedModel, convert)
