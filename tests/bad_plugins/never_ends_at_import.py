"""Never ends to import."""

while True:
    pass
