% Prints what Octave's netcdf package sees of a file: path, attribute ("" for the values), kind, count and sums, as readers.py
% digests them. The package has no text of variable length (NC_STRING), which is left out; its ncinfo fails on such an attribute,
% so that the file is walked by the calls below it.
1;
function show(path, name, value)
  if ischar(value)
    kind = "text"; count = 1;
  else
    kind = "number"; count = numel(value);
  end
  numbers = double(value(:)');
  numbers(isnan(numbers)) = 0.5;
  weights = mod(0:numel(numbers)-1, 97) + 1;
  printf("%s\t%s\t%s\t%d\t%.17g\t%.17g\t%.17g\n", path, name, kind, count, ...
         sum(numbers), sum(numbers .* weights), sum(abs(numbers)));
end
function attributes(path, id, variable, count)
  for index = 0:count-1
    name = netcdf_inqAttName(id, variable, index);
    [type, ~] = netcdf_inqAtt(id, variable, name);
    if type != netcdf_getConstant("NC_STRING")
      show(path, name, netcdf_getAtt(id, variable, name));
    end
  end
end
function visit(path, id)
  [~, variables, count] = netcdf_inq(id);
  attributes(path, id, netcdf_getConstant("NC_GLOBAL"), count);
  for variable = 0:variables-1
    [name, type, ~, count] = netcdf_inqVar(id, variable);
    attributes([path "/" name], id, variable, count);
    if type != netcdf_getConstant("NC_STRING")
      show([path "/" name], "", netcdf_getVar(id, variable));
    end
  end
  for child = netcdf_inqGrps(id)(:)'
    visit([path "/" netcdf_inqGrpName(child)], child);
  end
end
pkg load netcdf
arguments = argv();
if strcmp(arguments{end}, "version")
  printf("Octave %s, netcdf %s\n", version(), pkg("list", "netcdf"){1}.version);
  exit(0);
end
visit("", netcdf_open(arguments{end}, "NC_NOWRITE"));
