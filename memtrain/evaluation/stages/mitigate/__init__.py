"""The stage `mitigate`: what a mitigation while sampling changes, and what it costs."""
