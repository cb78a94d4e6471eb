"""What calibration data says about values: ranges, Gram matrices and output errors."""
