"""Takes all memory at import."""

held = []
while True:
    held.append(bytearray(1 << 26))
