"""How sure a number is: intervals of rates and means, and of what several training seeds give. Knows no run."""
