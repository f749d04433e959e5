"""What a trained model knows, measured on its weights: word similarity and neighbours of embedding and output rows."""
