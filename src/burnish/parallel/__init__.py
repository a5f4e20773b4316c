"""Several processes that train one model together. The only place that knows torch.distributed."""
