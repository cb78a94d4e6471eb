"""What needs gradients: importance of weights, and gates on branches."""
