# SPDX-License-Identifier: Apache-2.0
"""Deep clustering: an encoder and its clusters, trained together; one loop for all."""

__all__: list[str] = []
