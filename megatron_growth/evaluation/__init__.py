"""What a trained model has learned: perplexity, benchmarks, agreement, word vectors, and answers for judges."""
