"""`tipoff edgegap` and `tipoff edgegap-emulator`: game servers at Edgegap, real or emulated."""
