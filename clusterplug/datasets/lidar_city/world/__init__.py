# SPDX-License-Identifier: Apache-2.0
"""Streets: their ground, what stands next to them, what moves, and the classes of it all."""
