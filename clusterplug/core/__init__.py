# SPDX-License-Identifier: Apache-2.0
"""The ground floor: input validation, files, output folders. Imports torch and numpy, and nothing of clusterplug."""
