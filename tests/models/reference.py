"""The decoder, slowly: one sequence at a time, one head at a time, NumPy float64, no cache and no masks but `j <= i`."""

import numpy as np


def frequencies(config, windowed=False):
    size = config.rotary_size or config.head_size
    local = windowed and config.local_rope_theta is not None
    theta = config.local_rope_theta if local else config.rope_theta
    freqs = np.array([theta ** (-2 * i / size) for i in range(size // 2)])
    s = config.rope_scaling
    if s is None or local:
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
    half = len(freqs)
    turned = (vector[:half] + 1j * vector[half : 2 * half]) * np.exp(1j * position * freqs)
    return np.concatenate([turned.real, turned.imag, vector[2 * half :]])


def norm(x, weight, eps):
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps) * weight


def capped(x, cap):
    return x if cap is None else cap * np.tanh(x / cap)


def activation(config, x):
    if config.activation == "silu":
        return x / (1 + np.exp(-x))
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gated(config, gate, up):
    if config.activation != "clamped_swiglu":
        return activation(config, gate) * up
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return (up + 1) * gate / (1 + np.exp(-1.702 * gate))


def sparse(config, h, y):
    """The sparse layer of tokens `[T, W]`: a loop over tokens and the experts that each has."""
    out, none = np.zeros_like(h), np.zeros(config.experts)
    for i, x in enumerate(h):
        scores = x @ y["router"] + y.get("router_bias", 0)
        probs = np.exp(scores - scores.max())
        probs /= probs.sum()
        chosen = sorted(range(config.experts), key=lambda e: -probs[e])[: config.active_experts]
        total = sum(probs[e] for e in chosen) if config.norm_expert_weights else 1
        for e in chosen:
            gate, up = (x @ y[f"expert_{n}"][e] + y.get(f"expert_{n}_bias", none)[e] for n in ("gate", "up"))
            down = gated(config, gate, up) @ y["expert_down"][e] + y.get("expert_down_bias", none)[e]
            out[i] += probs[e] / total * down
    return out


def logits(config, weights, tokens):
    """Next-token logits float64 `[T, V]` of one sequence of tokens `[T]`."""
    w = {k: np.asarray(v, np.float64) for k, v in weights.items() if k != "layers"}
    layers = {k: np.asarray(v, np.float64) for k, v in weights["layers"].items()}
    length, eps, scale = len(tokens), config.norm_eps, config.attention_scale or config.head_size**-0.5
    whole = config.qk_norm_whole

    def normed(x, name, y):
        return norm(x, y[name] + config.norm_offset, eps) if name in y else x

    x = w["embed"][np.asarray(tokens)] * config.embed_scale
    for n in range(config.layers):
        y = {k: v[n] for k, v in layers.items()}
        windowed = config.sliding_window is not None and (config.layer_windows is None or config.layer_windows[n])
        rotated = config.layer_ropes is None or config.layer_ropes[n]
        freqs, window = frequencies(config, windowed), config.sliding_window if windowed else length
        h, mixed = normed(x, "attn_norm", y), np.zeros_like(x)
        q_heads, k_heads, v_heads = (np.einsum("tw,whe->the", h, y[name]) for name in "qkv")
        if config.qkv_bias:
            q_heads, k_heads, v_heads = q_heads + y["q_bias"], k_heads + y["k_bias"], v_heads + y["v_bias"]
        if config.qk_norm:
            q_heads, k_heads = normed(q_heads, "q_norm", y), normed(k_heads, "k_norm", y)
        if whole:
            q_heads, k_heads = (
                norm(heads.reshape(length, -1), y[name].reshape(-1) + config.norm_offset, eps).reshape(heads.shape)
                for heads, name in ((q_heads, "q_norm"), (k_heads, "k_norm"))
            )
        for head in range(config.heads):
            kv = head // (config.heads // config.kv_heads)
            q, k, v = q_heads[:, head], k_heads[:, kv], v_heads[:, kv]
            if rotated:
                q, k = ([rotate(x[i], i, freqs) for i in range(length)] for x in (q, k))
            for i in range(length):
                seen = [j for j in range(i + 1) if i - j < window]
                scores = capped(np.array([q[i] @ k[j] for j in seen]) * scale, config.attention_softcap)
                top = scores.max()
                p, sink = np.exp(scores - top), np.exp(y["sinks"][head] - top) if config.sinks else 0
                mixed[i] += (p / (p.sum() + sink)) @ v[seen] @ y["o"][head]
        mixed = mixed + y.get("o_bias", 0)
        x = x + config.residual_scale * normed(mixed, "attn_post_norm", y)
        h = normed(x, "mlp_norm", y)
        if config.experts is None:
            out = gated(config, h @ y["gate"], h @ y["up"]) @ y["down"]
        else:
            out = sparse(config, h, y)
        x = x + config.residual_scale * normed(out, "mlp_post_norm", y)
    head = w["embed"].T if config.tied_embeddings else w["lm_head"]
    products = norm(x, w["norm"] + config.norm_offset, eps) @ head
    return capped(products / config.logit_divisor, config.logit_softcap)


def response_logp(config, weights, context, response):
    """Sum of the log-probs of the response's tokens after the context, float64."""
    out = logits(config, weights, [*context, *response][:-1])[len(context) - 1 :]
    out = out - out.max(-1, keepdims=True)
    logp = out - np.log(np.exp(out).sum(-1, keepdims=True))
    return float(sum(logp[i, t] for i, t in enumerate(response)))


def attention(q, keys, values, cap=None, sink=-np.inf):
    """float64 `[E]`: softmax attention of one query over the keys that it sees, `[n, E]`, and one logit without a value."""
    scores = capped(np.array([q @ k for k in keys]) / np.sqrt(len(q)), cap)
    p = np.exp(scores - scores.max())
    return p @ values / (p.sum() + np.exp(sink - scores.max()))
