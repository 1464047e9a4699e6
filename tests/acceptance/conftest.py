"""What is not to be collected here."""

# A project with tests of its own, which test_project_tests.py runs in processes of their own.
collect_ignore = ["notes_project"]
