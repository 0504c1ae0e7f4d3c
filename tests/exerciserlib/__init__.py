"""The parts of the model-checked exerciser: model, operations, client, storm and the parent that runs them."""
