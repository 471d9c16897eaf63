"""Metrics over the results of models."""

from clusterplug.evaluation.kmeans_within_classes import kmeans_within_classes
from clusterplug.evaluation.subclass_agreement import SubclassAgreement, subclass_agreement

__all__ = ['SubclassAgreement', 'kmeans_within_classes', 'subclass_agreement']
