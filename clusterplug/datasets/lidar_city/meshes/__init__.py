# SPDX-License-Identifier: Apache-2.0
"""Things in the city as triangle meshes."""
