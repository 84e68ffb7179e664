from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fastflow", "fastflow.*"]), "fastflow.kernels"],
    package_dir={"fastflow": "fastflow", "fastflow.kernels": "kernels"},
)
