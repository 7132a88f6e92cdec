"""The configuration: what users write, validated once and compiled to what the program reads.

Text comes in through `load` (command line, environment, file) or `Config(...)` (the library). `values` and
`target` read single values, `table` has the words for messages, `settings` puts the two together, and
`describing`, which a server does without, says what came out. `targets` reads the tables `[targets.NAME]`. Nothing
here opens a connection; of the file system, only the TOML file, key files and CA files are read.
"""

from gateway.config.loading import exposed, listen_address, load
from gateway.config.settings import Config, Settings
from gateway.config.table import SETTINGS, Setting
from gateway.config.target import KeyPair, Target
from gateway.config.targets import TargetSettings
from gateway.config.values import Address, UnixAddress

__all__ = [
    "SETTINGS",
    "Address",
    "Config",
    "KeyPair",
    "Setting",
    "Settings",
    "Target",
    "TargetSettings",
    "UnixAddress",
    "exposed",
    "listen_address",
    "load",
]
