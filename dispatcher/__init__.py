"""AI Model Dispatcher: which local model should do this, right now, here?"""

VERSION = "0.1.0"
