"""What calibration data says about the inputs of layers."""
