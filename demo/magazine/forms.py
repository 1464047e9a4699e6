"""The forms that readers fill in."""

from django import forms

from magazine.models import Comment

FEWEST_WORDS = 3


class CommentForm(forms.ModelForm):
    """A comment on the article that ``instance`` names."""

    class Meta:
        model = Comment
        fields = ["name", "email", "body"]
        labels = {"name": "Your name", "email": "E-mail", "body": "Your comment"}
        help_texts = {"email": "Optional, and never shown."}
        widgets = {
            "name": forms.TextInput(attrs={"autocomplete": "name"}),
            "email": forms.EmailInput(attrs={"autocomplete": "email"}),
            "body": forms.Textarea(attrs={"rows": 5}),
        }

    def clean_body(self):
        body = self.cleaned_data["body"]
        if len(body.split()) < FEWEST_WORDS:
            raise forms.ValidationError("A few more words, please: at least three.")
        # Links are mostly advertising; an editor looks at them first.
        if "http://" in body or "https://" in body:
            self.instance.status = Comment.Status.HELD
        return body

    def clean(self):
        """Refuse a comment that is there already: a double click, or the back button."""
        data = super().clean()
        if {"name", "body"} <= data.keys() and self.instance.article.comments.filter(
            name=data["name"], body=data["body"]
        ).exists():
            raise forms.ValidationError("This comment is here already.")
        return data


class SearchForm(forms.Form):
    """The search box; ``CharField`` refuses what no database can look for."""

    q = forms.CharField(max_length=100, label="Search the magazine")
