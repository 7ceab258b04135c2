# For a GPU machine without Rust: everything hpml needs beside libtorch and the driver, in one folder.
PACK ?= target/hpml-pack

.PHONY: pack
pack:
	scripts/pack $(PACK)
