# SPDX-License-Identifier: Apache-2.0
"""A simulated lidar, what surfaces return, and the scans."""
