"""Samples of every kind, and a model's results for a batch of them."""

KINDS = ("single", "pair", "text", "pair", "single", "text")


def gradients(model, batch):
    model.zero_grad()
    losses = model(batch)
    losses.sum().backward()
    return losses.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
