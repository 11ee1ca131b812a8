"""The decoder, slowly: one sequence at a time, one head at a time, NumPy float64, no cache and no masks but `j <= i`."""

import numpy as np


def frequencies(config):
    freqs = np.array([config.rope_theta ** (-2 * i / config.head_size) for i in range(config.head_size // 2)])
    s = config.rope_scaling
    if s is None:
        return freqs
    if s.kind == "linear":
        return freqs / s.factor
    scaled = []
    for f in freqs:
        turns = s.original_length * f / (2 * np.pi)
        if turns < s.low_freq_factor:
            scaled.append(f / s.factor)
        elif turns > s.high_freq_factor:
            scaled.append(f)
        else:
            t = (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor)
            scaled.append((1 - t) * f / s.factor + t * f)
    return np.array(scaled)


def rotate(vector, position, freqs):
    half = len(vector) // 2
    turned = (vector[:half] + 1j * vector[half:]) * np.exp(1j * position * freqs)
    return np.concatenate([turned.real, turned.imag])


def norm(x, weight, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def logits(config, weights, tokens):
    """Next-token logits float64 `[T, V]` of one sequence of tokens `[T]`."""
    w = {k: np.asarray(v, np.float64) for k, v in weights.items() if k != "layers"}
    layers = {k: np.asarray(v, np.float64) for k, v in weights["layers"].items()}
    freqs, length = frequencies(config), len(tokens)
    window = config.sliding_window or length
    x = w["embed"][np.asarray(tokens)]
    for n in range(config.layers):
        y = {k: v[n] for k, v in layers.items()}
        h, mixed = norm(x, y["attn_norm"], config.norm_eps), np.zeros_like(x)
        for head in range(config.heads):
            kv = head // (config.heads // config.kv_heads)
            q, k, v = (h @ y[name][:, which] for name, which in (("q", head), ("k", kv), ("v", kv)))
            if config.qkv_bias:
                q, k, v = q + y["q_bias"][head], k + y["k_bias"][kv], v + y["v_bias"][kv]
            if config.qk_norm:
                q, k = norm(q, y["q_norm"], config.norm_eps), norm(k, y["k_norm"], config.norm_eps)
            q, k = ([rotate(x[i], i, freqs) for i in range(length)] for x in (q, k))
            for i in range(length):
                seen = [j for j in range(i + 1) if i - j < window]
                scores = np.array([q[i] @ k[j] for j in seen]) / np.sqrt(config.head_size)
                p = np.exp(scores - scores.max())
                mixed[i] += (p / p.sum()) @ v[seen] @ y["o"][head]
        x = x + mixed
        h = norm(x, y["mlp_norm"], config.norm_eps)
        gate = h @ y["gate"]
        x = x + (gate / (1 + np.exp(-gate)) * (h @ y["up"])) @ y["down"]
    head = w["embed"].T if config.tied_embeddings else w["lm_head"]
    return norm(x, w["norm"], config.norm_eps) @ head


def response_logp(config, weights, context, response):
    """Sum of the log-probs of the response's tokens after the context, float64."""
    out = logits(config, weights, [*context, *response][:-1])[len(context) - 1 :]
    out = out - out.max(-1, keepdims=True)
    logp = out - np.log(np.exp(out).sum(-1, keepdims=True))
    return float(sum(logp[i, t] for i, t in enumerate(response)))


def attention(q, keys, values):
    """float64 `[E]`: softmax attention of one query over the keys that it sees, `[n, E]`."""
    scores = np.array([q @ k for k in keys]) / np.sqrt(len(q))
    p = np.exp(scores - scores.max())
    return p @ values / p.sum()
