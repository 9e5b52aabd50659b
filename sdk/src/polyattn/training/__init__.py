"""Training."""
from .losses import *
from .optimisers import *
