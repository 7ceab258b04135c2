# What the readers in R share. `begin` loads a package and returns the file to be read; asked for "version" it prints those of R and
# the package. `show` prints a line: path, attribute ("" for the values), kind, count and sums, as readers.py digests them.
begin <- function(package) {
    suppressMessages(library(package, character.only = TRUE))
    arguments <- commandArgs(trailingOnly = TRUE)
    if (arguments[1] == "version") {
        version <- paste(R.version$major, R.version$minor, sep = ".")
        cat("R ", version, ", ", package, " ", as.character(packageVersion(package)), "\n", sep = "")
        quit()
    }
    arguments[1]
}
own <- c("CLASS", "NAME", "DIMENSION_LIST", "REFERENCE_LIST")
show <- function(path, name, value) {
    kind <- if (is.character(value)) "text" else "number"
    count <- length(value)
    numbers <- if (kind == "text") as.integer(charToRaw(enc2utf8(paste(value, collapse = "\n")))) else as.vector(value)
    numbers <- as.double(numbers)
    numbers[is.nan(numbers)] <- 0.5
    weights <- (seq_along(numbers) - 1) %% 97 + 1
    cat(path, name, kind, count, sprintf("%.17g", c(sum(numbers), sum(numbers * weights), sum(abs(numbers)))), sep = "\t")
    cat("\n")
}
